package main

import (
	"net"
	"strings"
	"testing"
)

// TestURLsOfTLS: all URLs of a listener with TLS are https.
func TestURLsOfTLS(t *testing.T) {
	urls := mirrorURLs(&net.TCPAddr{IP: net.IPv4zero, Port: 5000}, "https")
	if len(urls) < 4 {
		t.Skip("this host has no address that others may reach")
	}
	for i := 1; i < len(urls); i += 2 {
		if !strings.HasPrefix(urls[i].(string), "https://") {
			t.Errorf("%s is %s", urls[i-1], urls[i])
		}
	}
}
