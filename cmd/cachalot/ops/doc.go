// Package ops has the commands for a running mirror. They use its admin API.
//
//	command ─► Mirror ─► client ─┬─ get, send ─► JSON ────────► table, or the body as it is
//	           (--admin, the     ├─ list ──────► pages ───────► rows as they come
//	           token)            └─ stream ────► JSON lines ──► Bar, and a line for each image
//
// The types of requests and responses are those of package admin, so that they are
// defined once. All text from the network passes through safe before it goes to the terminal.
//
// An [Error] has the exit code of the process.
package ops
