package storage

import "github.com/cachalot-registry/cachalot/storage/index"

// Scope is a place in which a digest was seen, and settings of a request for it.
type Scope struct {
	Upstream   string
	Repository string
	// Manifest tells a digest seen under /manifests/ from one seen under
	// /blobs/, so that a layer can never be read as a manifest.
	Manifest bool
	// Keep says whether, and how long, the content is stored. It is not part of the place.
	Keep Retention
	// Client is the address of the client, for its fair share of downloads; "": no client.
	// It is not part of the place.
	Client string
}

// place is the scope without its Keep and Client.
func (s Scope) place() index.Place {
	return index.Place{Upstream: s.Upstream, Repository: s.Repository, Manifest: s.Manifest}
}

// Callers see the index's own types of tags.
type (
	TagKey   = index.TagKey
	Tag      = index.Tag
	NamedTag = index.NamedTag
)
