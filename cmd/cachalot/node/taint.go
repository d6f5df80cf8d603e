package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// kubernetes is the API server, as a pod reaches it.
type kubernetes struct {
	url    string
	folder string // of the ServiceAccount's token, which is renewed there, and the CA
	node   string // this machine's name
}

// inCluster returns the API server of the pod's cluster.
func inCluster() (kubernetes, error) {
	host, port, node := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"), os.Getenv("NODE_NAME")
	if host == "" || port == "" || node == "" {
		return kubernetes{}, errors.New("no variables KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT and NODE_NAME: this is not a pod of the chart")
	}
	return kubernetes{"https://" + net.JoinHostPort(host, port), "/var/run/secrets/kubernetes.io/serviceaccount", node}, nil
}

type taint struct {
	Key string `json:"key"`
}

const (
	apiTimeout = 10 * time.Second
	// maxNode bounds the answer of the API server. A node with its images has some 100 KiB.
	maxNode = 4 << 20
)

// untaint removes a taint from the node, whatever its effect.
func (k kubernetes) untaint(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	for {
		var node struct {
			Spec struct {
				Taints []taint `json:"taints"`
			} `json:"spec"`
		}
		answer, err := k.call(ctx, http.MethodGet, "", nil)
		if err == nil {
			err = json.Unmarshal(answer, &node)
		}
		if err != nil {
			return fmt.Errorf("read the node %s: %w", k.node, err)
		}
		i := slices.IndexFunc(node.Spec.Taints, func(t taint) bool { return t.Key == key })
		if i < 0 {
			return nil
		}
		at := fmt.Sprintf("/spec/taints/%d", i)
		patch, err := json.Marshal([]map[string]string{ // fails if others have changed the list
			{"op": "test", "path": at + "/key", "value": key},
			{"op": "remove", "path": at},
		})
		if err == nil {
			_, err = k.call(ctx, http.MethodPatch, "application/json-patch+json", patch)
		}
		if err != nil {
			return fmt.Errorf("remove the taint %s from the node %s: %w", key, k.node, err)
		}
	}
}

// call sends a request about the node.
func (k kubernetes) call(ctx context.Context, method, contentType string, body []byte) ([]byte, error) {
	token, err := os.ReadFile(filepath.Join(k.folder, "token"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(k.folder, "ca.crt"))
	if err != nil {
		return nil, err
	}
	trust := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	trust.RootCAs.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, method, k.url+"/api/v1/nodes/"+k.node, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxNode))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("the API server answers %s", resp.Status)
	}
	return answer, err
}
