"""Raw downloads -> one folder that `lrkd.data.prepared.prepared` reads. See data_prep/README.md."""
