// Package ops has the commands that ask a running mirror, by its admin API.
//
//	command ─► Mirror ─► client ─┬─ get, send ─► JSON ────────► table, or the body as it is
//	           (--admin, the     ├─ list ──────► pages ───────► rows as they come
//	           token)            └─ stream ────► JSON lines ──► Bar, and a line for each image
//
// What is asked and answered is package proxy's, so that neither side is written
// twice. What comes from the network goes to the terminal through safe alone.
//
// An [Error] has the exit code of what went wrong.
package ops
