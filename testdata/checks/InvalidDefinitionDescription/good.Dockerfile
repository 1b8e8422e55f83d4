# tools what the build needs
FROM alpine:3.22 AS tools
# This is about nothing in particular.

# VERSION which one to build
ARG VERSION=1
