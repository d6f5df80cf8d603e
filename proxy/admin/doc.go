// Package admin is the admin listener: metrics, probes, profiles and the API by which
// operators see what is kept, warm, pin and purge it. openapi.yaml describes the API.
//
//	request ─► besidesProbes ─► guard ─► route ─► handler ─► answer, stream or problem
//	            places           who may           │
//	                                               └─► audit line, where it changes something
//
// The data plane knows nothing of it. Of that it knows what proxy/operate.go has.
package admin
