"""Networks in plain torch; they take their layer classes as `operations` and import no ComfyUI."""
