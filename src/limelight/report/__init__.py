"""Visualisation of relevance: overlays, waveforms, contact sheets and self-contained pages, without any model.

overlay(relevance, pictures)        heat over the image, modality bars, top words         -> matplotlib Figure
waveform(relevance, samples, rate)  heat over the time of an audio clip                   -> matplotlib Figure
contact_sheet(relevance, frames)    heat over the frames of a video                       -> matplotlib Figure
save_page(path, cases)              the answer as words, each with its heat map           -> an HTML file
"""
