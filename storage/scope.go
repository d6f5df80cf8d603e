package storage

import "github.com/cachalot-registry/cachalot/storage/index"

// Scope is a place in which a digest was seen, and how content is asked for there.
type Scope struct {
	Upstream   string
	Repository string
	// Manifest tells a digest seen under /manifests/ from one seen under
	// /blobs/, so that a layer can never be read as a manifest.
	Manifest bool
	// Keep is how content that is asked for here is kept. It is no part of the place.
	Keep Retention
	// Client is the address of the client that asks, for its fair share of downloads; "":
	// none does. It is no part of the place.
	Client string
}

// place is the scope less its Keep and Client.
func (s Scope) place() index.Place {
	return index.Place{Upstream: s.Upstream, Repository: s.Repository, Manifest: s.Manifest}
}

// What the index has of tags is what callers see of them.
type (
	TagKey   = index.TagKey
	Tag      = index.Tag
	NamedTag = index.NamedTag
)
