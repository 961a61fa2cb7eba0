"""Speaking with a DICOMweb server: addresses, options, searches, retrievals and stores."""
