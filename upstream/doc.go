// Package upstream fetches manifests, blobs and lists from other registries.
//
//	Head, Open, Manifest, Tags, Referrers
//	  ask          again after a pause, where all URLs failed      (ask.go)
//	    askEach    the URLs in order; digests may be raced         (race.go)
//	      discoverChallenge  once, from GET /v2/                   (endpoint.go)
//	      askOne   the accounts in turn                            (ask.go, endpoint.go)
//	        budget   what the rate limit leaves the account        (budget.go)
//	        follow   authenticate: Basic, or a token by scope      (auth.go, token.go)
//	          chase  redirects, by hand                            (ask.go)
//	            roundTrip  breaker, rests, transport, metrics      (wire.go)
//	              pass     request id and trace, to the registry   (requestid.go, trace.go)
//	              dial     which addresses may be reached          (egress.go, special.go)
//	              body     progress deadline, counting             (body.go)
//
// Before the first request to a URL, one GET of /v2/ asks it for its challenge,
// so that the requests that follow need no 401 each. Where that brings none
// within five seconds, they go out bare and learn from their own.
//
// Several accounts share the repositories among them: each is asked for with
// one account as long as a token lives, and with the next one when its quota is
// spent or it is refused. In a race the question is put to a second URL under a
// context of its own; the winner's lasts until its body is closed, the others'
// end with the race.
//
// A credential reaches the origin of the registry's own URL and the token
// realms allowed for it; a token reaches the origin it was issued for. Neither
// follows a redirect to another scheme, host or port.
//
// The authentication is our own, for reasons found in the sources of the two
// candidates. oras-go 2.6 (registry/remote/auth) keeps tokens without their
// expiry in an unbounded map by host. ociauth (cuelabs.dev/go/oci, December
// 2025) holds one lock during a token request, so that every scope of a
// registry waits for it, under one caller's context, and reads an unbounded
// answer. Both send the credential to whatever realm the challenge names, and
// follow that server's redirects.
package upstream
