"""From rows in files to tokens with the spans that are trained."""
