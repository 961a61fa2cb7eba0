"""The images that people annotate and the labels that they save: folders of studies and DICOMweb servers."""
