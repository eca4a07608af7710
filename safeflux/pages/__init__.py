"""HTML pages that stand alone: what the pages of the demo, of previews and of attacks share."""
