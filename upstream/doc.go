// Package upstream fetches manifests, blobs and lists from other registries.
//
//	Has, Resolve, Open, Manifest, TagPage, Referrers
//	  ask          retry after a pause if all URLs failed          (ask.go)
//	    askEach    the URLs in order; digests may be raced         (race.go)
//	      discoverChallenge  once, from GET /v2/                   (endpoint.go)
//	      askOne   the accounts in turn                            (ask.go, endpoint.go)
//	        budget   what is left of the account's rate limit      (budget.go)
//	        follow   authenticate: Basic, or a token by scope      (auth.go, token.go)
//	          chase  redirects, by hand                            (ask.go)
//	            roundTrip  pauses, breaker, transport, metrics     (wire.go)
//	              pass     request id and trace, to the registry   (requestid.go, trace.go)
//	              dial     the policy of allowed addresses         (egress.go, special.go)
//	              body     progress deadline, counting             (body.go)
//
// Before the first request to a URL, one GET of /v2/ gets its challenge, so that the
// next requests do not each get a 401. If there is no answer within five seconds,
// requests are sent without a token, and use the challenge of their own 401.
//
// Several accounts share the repositories. A repository uses one account while its
// token is valid, and the next account when the quota is spent or the account is
// refused. In a race a second URL gets the same request under a separate context. The
// winner's context ends when its body is closed, the others' with the race.
//
// A credential is sent only to the origin of the registry's own URL and to the
// allowed token realms; a token only to the origin that it was issued for. Neither is
// sent after a redirect to another scheme, host or port.
//
// cachalot has its own authentication because of defects in the two libraries. oras-go
// 2.6 (registry/remote/auth) stores tokens without their expiry, in an unbounded map by
// host. ociauth (cuelabs.dev/go/oci, December 2025) holds one lock during a token
// request, under one caller's context, so that all scopes of a registry wait, and it
// reads an unbounded answer. Both send the credential to any realm that the challenge
// names, and follow redirects of that server.
package upstream
