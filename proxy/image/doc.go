// Package image reads what an image names: its manifests, and the platforms, configs and
// layers that they name. What a manifest says is hostile until the contrary is shown, so
// that everything here has a bound: what is read of one manifest, and of all those of an
// image.
package image
