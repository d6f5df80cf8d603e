// Package admin is the admin listener: metrics, probes, profiles, and the API with which
// operators inspect, warm, pin and purge stored content. openapi.yaml describes the API.
//
//	request ─► besidesProbes ─► guard ─► route ─► handler ─► answer, stream or problem
//	            places           who may           │
//	                                               └─► audit line, if it changes something
//
// The data plane does not depend on this package. This package uses only the part of
// the data plane that is in proxy/operate.go.
package admin
