"""From a recording to a transcript; `pipeline` has the whole trip."""
