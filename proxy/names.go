package proxy

import (
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

const (
	// A client may name clientNames new unlisted registries at once, and then one more each
	// clientNamesEvery; all clients together allNames, and one each allNamesEvery. Each
	// registry costs connections, and may push out one that others use.
	clientNames, clientNamesEvery = 32, 4 * time.Second
	allNames, allNamesEvery       = 256, 250 * time.Millisecond
)

// newNames limits the rate at which clients name new unlisted registries.
type newNames struct {
	all      *rate.Limiter
	byClient *lru.Cache[string, *rate.Limiter]
}

func newNewNames() (*newNames, error) {
	byClient, err := lru.New[string, *rate.Limiter](remember)
	return &newNames{rate.NewLimiter(rate.Every(allNamesEvery), allNames), byClient}, err
}

// allow reports whether a client may name one more.
func (n *newNames) allow(client string) bool {
	own := rate.NewLimiter(rate.Every(clientNamesEvery), clientNames)
	if before, ok, _ := n.byClient.PeekOrAdd(client, own); ok {
		own = before
	}
	return own.Allow() && n.all.Allow()
}
