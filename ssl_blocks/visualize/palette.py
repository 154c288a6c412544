"""The colours of all pictures."""

# Okabe and Ito's, which all kinds of colour vision tell apart
HUES = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
ALLOWED, BLOCKED, SIGNAL, INK, PAPER = "#0072B2", "#F2F2F2", "#D55E00", "#222222", "#FFFFFF"
UNREAD, UNREAD_EDGE = "#BDBDBD", "#A3A3A3"
