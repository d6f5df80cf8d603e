// Package hostile tests a mirror with registries that send wrong responses: each is a
// correct response with up to four changes, from the fuzzer's bytes or a seed. The mirror
// must not panic, must serve only content that matches its digest, must respond in time,
// must reveal no secret, must serve the clients of other registries as before, and must
// serve this one's clients when its responses are correct again.
//
// Everything is in memory and in synctest's bubbles, so waiting takes no time.
package hostile
