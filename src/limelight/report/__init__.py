"""Relevance as something to look at: overlays, waveforms, contact sheets, and one self-contained page. No model here.

overlay(relevance, pictures)        heat over the picture, modality bars, top words      -> matplotlib Figure
waveform(relevance, samples, rate)  heat over the seconds of a sound                      -> matplotlib Figure
contact_sheet(relevance, frames)    heat over the frames of a video                       -> matplotlib Figure
save_page(path, cases)              the answer as words, each with its heat map           -> an HTML file
"""
