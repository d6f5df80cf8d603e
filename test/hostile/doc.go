// Package hostile has a mirror ask registries that answer anything: each answer is an
// honest one with up to four things in it changed, as the fuzzer's bytes or a seed say.
// Whatever comes, the mirror does not panic, gives out nothing but what a digest names,
// answers in time, tells no secret, serves another registry's clients as ever, and serves
// this one's once it is honest.
//
// All is in memory and in synctest's bubbles: no wait takes time.
package hostile
