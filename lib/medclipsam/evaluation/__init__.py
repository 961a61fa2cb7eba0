"""The paper's tables and text sensitivity, measured on data in the paper's layout or on a studies folder."""
