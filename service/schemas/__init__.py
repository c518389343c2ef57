"""What crosses the wire, validated once: an unknown or ill-fitting field is named and refused."""
