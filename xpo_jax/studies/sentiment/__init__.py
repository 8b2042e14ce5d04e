"""The controlled-sentiment study of the DPO paper, the demo."""
