package storage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
)

// RepositoryInfo sums up what is kept of one repository. A blob that was seen in
// several counts in each.
type RepositoryInfo struct {
	Upstream, Repository string
	Tags                 int64
	Blobs                int64 // manifests too
	DiskBytes            int64 // bytes of the disk
	Used                 time.Time
	Uses                 int64
}

// UpstreamInfo sums up what is kept of one upstream; each blob counts once.
type UpstreamInfo struct {
	Upstream                  string
	Repositories, Tags, Blobs int64
	DiskBytes                 int64
}

// Summary is what is kept, by repository and by upstream, in the order of names.
type Summary struct {
	Repositories []RepositoryInfo
	Upstreams    []UpstreamInfo
	Unlinked     UpstreamInfo // blobs that no request has asked for since the index was lost
	Truncated    bool         // there are more repositories than are listed
	Taken        time.Time
}

const (
	// mostRepositories bounds the memory of a Summary, to some 40 MiB.
	mostRepositories = 1 << 17
	// summaryAge is how long a Summary is given out again, at least.
	summaryAge = 5 * time.Second
)

// Summary takes a look at all links, records and tags: some seconds of one
// processor with a million blobs (BenchmarkLookAtMillion). One look is for all who
// ask meanwhile, and for ten times as long as it has taken.
func (s *Store) Summary(ctx context.Context) (Summary, error) {
	select {
	case s.summing <- struct{}{}:
		defer func() { <-s.summing }()
	case <-ctx.Done():
		return Summary{}, context.Cause(ctx)
	}
	if old := s.summary; old != nil && time.Now().Before(s.summaryUntil) {
		return *old, nil
	}
	began := time.Now()
	sum, err := s.sumUp(ctx)
	if err != nil {
		return Summary{}, fmt.Errorf("sum up the index: %w", err)
	}
	s.summary, s.summaryUntil = &sum, time.Now().Add(max(summaryAge, 10*time.Since(began)))
	return sum, nil
}

// InvalidateSummary has the next Summary look anew: what was asked for has changed it.
func (s *Store) InvalidateSummary() {
	s.summing <- struct{}{}
	s.summary = nil
	<-s.summing
}

func (s *Store) sumUp(ctx context.Context) (Summary, error) {
	type sums struct {
		repository *RepositoryInfo
		upstream   *UpstreamInfo
	}
	sum := Summary{Taken: time.Now()}
	repositories, upstreams := map[string]sums{}, map[string]*UpstreamInfo{}
	of := func(name []byte) sums { // of upstream NUL repository
		if known, ok := repositories[string(name)]; ok {
			return known
		}
		upstream, repository, _ := strings.Cut(string(name), "\x00")
		u := upstreams[upstream]
		if u == nil {
			u = &UpstreamInfo{Upstream: upstream}
			upstreams[upstream] = u
		}
		n := sums{&RepositoryInfo{Upstream: upstream, Repository: repository}, u}
		if len(repositories) == mostRepositories {
			sum.Truncated = true
			return n // counts for its upstream only
		}
		repositories[string(name)] = n
		u.Repositories++
		return n
	}

	// Records and links are both in the order of digests.
	var failed error
	records := s.index.view([]byte{'b'})
	defer records.close()
	links := s.index.view([]byte{'l'})
	defer links.close()
	next, stop := iter.Pull2(links.ordered(links.prefix, &failed))
	defer stop()
	key, _, more := next()
	var at []sums // of one digest's places
	for b, value := range records.ordered(records.prefix, &failed) {
		if ctx.Err() != nil {
			return sum, context.Cause(ctx)
		}
		d, ok := decodeBlobKey(b)
		r, err := decodeRecord(value)
		if !ok || err != nil {
			continue
		}
		at = at[:0]
		for more {
			p, ok := decodeLinkKey(key)
			order := bytes.Compare(p.digest, d)
			if ok && order > 0 {
				break
			}
			if ok && order == 0 {
				if n := of(p.name); !slices.Contains(at, n) { // as manifest and as blob
					at = append(at, n)
				}
			}
			key, _, more = next()
		}
		if len(at) == 0 {
			sum.Unlinked.Blobs++
			sum.Unlinked.DiskBytes += r.diskBytes()
		}
		for i, n := range at {
			n.repository.Blobs++
			n.repository.DiskBytes += r.diskBytes()
			n.repository.Uses += int64(r.uses)
			if used := time.Unix(r.accessed, 0); used.After(n.repository.Used) {
				n.repository.Used = used
			}
			if !slices.ContainsFunc(at[:i], func(o sums) bool { return o.upstream == n.upstream }) {
				n.upstream.Blobs++
				n.upstream.DiskBytes += r.diskBytes()
			}
		}
	}
	err := s.Tags(func(k TagKey, _ Tag) bool {
		if !strings.Contains(k.Name, "/") { // no list
			n := of([]byte(k.Upstream + "\x00" + k.Repository))
			n.repository.Tags++
			n.upstream.Tags++
		}
		return ctx.Err() == nil
	})
	if err = errors.Join(err, failed, ctx.Err()); err != nil {
		return sum, err
	}
	for _, r := range repositories {
		sum.Repositories = append(sum.Repositories, *r.repository)
	}
	slices.SortFunc(sum.Repositories, func(a, b RepositoryInfo) int {
		return cmp.Or(cmp.Compare(a.Upstream, b.Upstream), cmp.Compare(a.Repository, b.Repository))
	})
	for _, u := range upstreams {
		sum.Upstreams = append(sum.Upstreams, *u)
	}
	slices.SortFunc(sum.Upstreams, func(a, b UpstreamInfo) int { return cmp.Compare(a.Upstream, b.Upstream) })
	return sum, nil
}
