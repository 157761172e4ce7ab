"""A page and an endpoint on which a trained model fills in text; `sedd demo` starts them."""
