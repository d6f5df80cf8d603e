package storage

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"
)

// RepositoryInfo sums up what is stored of one repository. A blob that was seen in
// several counts in each.
type RepositoryInfo struct {
	Upstream, Repository string
	Tags                 int64
	Blobs                int64 // manifests too
	DiskBytes            int64 // bytes of the disk
	Used                 time.Time
	Uses                 int64
}

// UpstreamInfo sums up what is stored of one upstream; each blob counts once.
type UpstreamInfo struct {
	Upstream                  string
	Repositories, Tags, Blobs int64
	DiskBytes                 int64
}

// Summary is what is stored, by repository and by upstream, in the order of names.
type Summary struct {
	Repositories []RepositoryInfo
	Upstreams    []UpstreamInfo
	Unlinked     UpstreamInfo // blobs without a link: not requested since the index was lost
	Truncated    bool         // there are more repositories than are listed
	Taken        time.Time
}

const (
	// mostRepositories bounds the memory of a Summary, to some 40 MiB.
	mostRepositories = 1 << 17
	// summaryAge is how long at least a Summary is returned again.
	summaryAge = 5 * time.Second
)

// Summary scans all links, records and tags: some seconds of one processor with a million
// blobs (BenchmarkLookAtMillion). All callers during the scan share its result, and it is
// returned again for ten times as long as it took.
func (s *Store) Summary(ctx context.Context) (Summary, error) { return s.summaries.get(ctx) }

// InvalidateSummary makes the next Summary scan again, after a purge or the like.
func (s *Store) InvalidateSummary() { s.summaries.invalidate() }

// sums are an unfinished Summary. Names are looked up by the bytes of a walk, so that a
// link allocates nothing.
type sums struct {
	upstreams    map[string]*upstreamSum
	repositories int // that are listed
	truncated    bool
}

type upstreamSum struct {
	UpstreamInfo

	repositories map[string]*repositorySum
}

type repositorySum struct {
	RepositoryInfo

	upstream *upstreamSum
}

// of returns the sums of a repository. Above mostRepositories, one that is new counts for its
// upstream only.
func (t *sums) of(upstream, repository []byte) *repositorySum {
	u := t.upstreams[string(upstream)]
	if u == nil {
		u = &upstreamSum{UpstreamInfo: UpstreamInfo{Upstream: string(upstream)}, repositories: map[string]*repositorySum{}}
		t.upstreams[u.Upstream] = u
	}
	r := u.repositories[string(repository)]
	if r != nil {
		return r
	}
	r = &repositorySum{RepositoryInfo{Upstream: u.Upstream, Repository: string(repository)}, u}
	if t.repositories == mostRepositories {
		t.truncated = true
		return r
	}
	t.repositories++
	u.repositories[r.Repository] = r
	u.Repositories++
	return r
}

func (s *Store) sumUp(ctx context.Context) (Summary, error) {
	sum := Summary{Taken: time.Now()}
	all := sums{upstreams: map[string]*upstreamSum{}}
	var at []*repositorySum // the places of one digest
	for b, err := range s.index.Blobs() {
		if ctx.Err() != nil {
			return sum, context.Cause(ctx)
		}
		if err != nil {
			return sum, err
		}
		at = at[:0]
		for l := range b.Links {
			if r := all.of(l.Upstream(), l.Repository()); !slices.Contains(at, r) { // as manifest and as blob
				at = append(at, r)
			}
		}
		bytes := blocks(b.Size)
		if len(at) == 0 {
			sum.Unlinked.Blobs++
			sum.Unlinked.DiskBytes += bytes
		}
		for i, r := range at {
			r.Blobs++
			r.DiskBytes += bytes
			r.Uses += int64(b.Uses)
			if used := time.Unix(b.Accessed, 0); used.After(r.Used) {
				r.Used = used
			}
			if !slices.ContainsFunc(at[:i], func(o *repositorySum) bool { return o.upstream == r.upstream }) {
				r.upstream.Blobs++
				r.upstream.DiskBytes += bytes
			}
		}
	}
	err := s.Tags(func(k TagKey, _ Tag) bool {
		if !k.IsList() {
			r := all.of([]byte(k.Upstream), []byte(k.Repository))
			r.Tags++
			r.upstream.Tags++
		}
		return ctx.Err() == nil
	})
	if err = errors.Join(err, ctx.Err()); err != nil {
		return sum, err
	}
	sum.Truncated = all.truncated
	for _, u := range all.upstreams {
		sum.Upstreams = append(sum.Upstreams, u.UpstreamInfo)
		for _, r := range u.repositories {
			sum.Repositories = append(sum.Repositories, r.RepositoryInfo)
		}
	}
	slices.SortFunc(sum.Repositories, func(a, b RepositoryInfo) int {
		return cmp.Or(cmp.Compare(a.Upstream, b.Upstream), cmp.Compare(a.Repository, b.Repository))
	})
	slices.SortFunc(sum.Upstreams, func(a, b UpstreamInfo) int { return cmp.Compare(a.Upstream, b.Upstream) })
	return sum, nil
}
