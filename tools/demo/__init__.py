"""The playground: sessions compute, panels draw, the page is Gradio's."""
