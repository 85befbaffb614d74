"""Raw downloads -> one folder that `lrkd.data.prepared` reads. See data_prep/README.md."""
