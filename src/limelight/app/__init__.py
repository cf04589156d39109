"""A Gradio app: ask about an image, audio or video and see which input each word of the answer comes from."""
