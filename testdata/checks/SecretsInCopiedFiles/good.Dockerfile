FROM node:24
RUN --mount=type=secret,id=npmrc,target=/root/.npmrc release
