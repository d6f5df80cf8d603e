// Package proxy answers OCI distribution requests (distribution-spec 1.1, pull
// and discovery) from a [storage.Store], which it fills from upstream registries.
//
//	request ─► target ─► tag or list? ─► resolve ─────────► digest ─► open ─► serve
//	                         │            │  fresh: the index says           (ServeContent:
//	                         │            │  else: one check for all waiters  Range, HEAD,
//	                         │            │        no longer than             sendfile)
//	                         │            │        revalidate_timeout
//	                         │            └► upstream fails: what is kept
//	                         └ digest ──────────────────────────────►
//
// A tag, a tag list and a referrers list are the same thing here: a pointer
// ([storage.Tag]) from a mutable name to content kept by digest. resolve keeps
// the pointer as fresh as the configuration asks, open gets the content.
//
// Checks run under the Proxy's own context, so that they survive the clients
// that wait for them. When a check fails or takes too long while something is
// kept, its upstream is suspect: clients are answered at once with what is kept,
// and one check at a time goes on in the background until one succeeds.
//
// Rules say who may have what, and how long it is fresh and kept; they are asked
// once a request, before any upstream. When a tag is gone upstream, one
// goroutine looks for what no other tag holds, and marks it to go first.
//
// What an image names is hostile until the contrary is shown: a walk looks at its manifests,
// for all who need more than one of them, and has bounds in all.
//
// A request has an id, its client's or one of its own, which goes in its context
// to all that it begins: lines in the log and requests upstream. Its span, where
// there is a tracer, goes the same way; storage and upstream put theirs below it.
//
// Handlers return errors; writeError alone writes them.
package proxy
