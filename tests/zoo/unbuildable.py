"""Families of transformers' multimodal generation tables that have no row, each with its reason."""

ENCODER_DECODER = "encoder and decoder: the media are read by the encoder, the prompt has no positions for them"
SAME = "same class as another row: "

UNBUILDABLE: dict[str, str] = {
    # another row's class
    "glmga": SAME + "glm46v",
    "shieldgemma2": SAME + "gemma3",
    "pp_chart2table": SAME + "got_ocr2",
    "qwen2_5_omni": "a thinker (row qwen2_5_omni_thinker) with a talker and a vocoder around it, whose forward is "
    "not defined",
    "qwen3_omni_moe": "a thinker (row qwen3_omni_thinker) with a talker and a vocoder around it, whose forward is "
    "not defined",
    "mistral4": "text only",
    # no autoregressive text
    "pi0": "outputs robot actions by flow matching, not tokens",
    "diffusion_gemma": "denoises blocks of tokens: no next-token logits",
    "dia": "outputs audio codes",
    "vibevoice": "outputs audio",
    "pop2piano": "outputs notes",
    # no prompt positions that hold media
    "blip": "a BERT captioner: cross-attention, no placeholders, no `layers`",
    "git": "prepends the image inside the model: the prompt has no positions for it, and there is no `layers`",
    "evolla": "reads protein sequences, by cross-attention adapters",
    "kyutai_speech_to_text": "every position sums a text token and 32 audio codes: input_ids has three dimensions",
    "voxtral_realtime": "adds sound to every position, generated ones too: generate needs more sound than forward "
    "takes",
    # towers that cannot be made small or still
    "vibevoice_asr": "samples noise for its audio latents unless forward gets sample=False, which is not a tensor",
    "nemo_speechlm": "an encoder of two pretrained models (recognition and diarisation) with a word-timestamp model",
    # encoder and decoder
    "canary": ENCODER_DECODER,
    "cohere_asr": ENCODER_DECODER,
    "florence2": ENCODER_DECODER,
    "moonshine": ENCODER_DECODER,
    "moonshine_streaming": ENCODER_DECODER,
    "pix2struct": ENCODER_DECODER,
    "pp_formulanet": ENCODER_DECODER,
    "seamless_m4t": ENCODER_DECODER,
    "seamless_m4t_v2": ENCODER_DECODER,
    "speech-encoder-decoder": ENCODER_DECODER,
    "speech_to_text": ENCODER_DECODER,
    "speecht5": ENCODER_DECODER,
    "t5gemma2": ENCODER_DECODER,
    "udop": ENCODER_DECODER,
    "vision-encoder-decoder": ENCODER_DECODER,
    "whisper": ENCODER_DECODER,
}
