"""The Jupyter server extension: REST under `aios/` and the events that keep the sidebar alive."""
