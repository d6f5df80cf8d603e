// Package image reads the manifests of an image, and the platforms, configs and layers
// that they name. Manifests are untrusted, so reading has limits: for one manifest, and
// for all manifests of an image.
package image
