package storage

import (
	"cmp"
	"slices"

	"github.com/opencontainers/go-digest"
)

// fills are the downloads in progress: one for each digest and upstream, so that an
// upstream's content, errors and speed do not affect another's. gate.mu guards it.
type fills map[digest.Digest]map[string]*fill

// of is an upstream's download of the digest; nil: there is none.
func (t fills) of(d digest.Digest, upstream string) *fill { return t[d][upstream] }

func (t fills) add(f *fill) {
	if t[f.digest] == nil {
		t[f.digest] = map[string]*fill{}
	}
	t[f.digest][f.place.Upstream] = f
}

func (t fills) remove(f *fill) {
	delete(t[f.digest], f.place.Upstream)
	if len(t[f.digest]) == 0 {
		delete(t, f.digest)
	}
}

// list is every download.
func (t fills) list() (all []*fill) {
	for _, byUpstream := range t {
		for _, f := range byUpstream {
			all = append(all, f)
		}
	}
	return all
}

// ending returns a download of the digest that is about to become a blob, or to leave the
// table; nil: there is none. Until it has left, no other caller changes the digest's file.
func (t fills) ending(d digest.Digest) *fill {
	for _, f := range t[d] {
		if f.settling || f.state().phase > streaming {
			return f
		}
	}
	return nil
}

// sentBy returns the upstreams whose downloads of the digest have verified, and may have no
// link yet.
func (t fills) sentBy(d digest.Digest) (upstreams []string) {
	for upstream, f := range t[d] {
		if f.state().phase == verified {
			upstreams = append(upstreams, upstream)
		}
	}
	return upstreams
}

// among reports whether the digest is being downloaded from an upstream; "": from any.
func (t fills) among(d digest.Digest, upstream string) bool {
	if upstream == "" {
		return len(t[d]) > 0
	}
	return t.of(d, upstream) != nil
}

// write reports whether a download writes the partial, or is about to.
func (t fills) write(p partial) bool {
	for upstream := range t[p.digest] {
		if originName(upstream) == p.origin {
			return true
		}
	}
	return false
}

// Filling reports whether the digest is being downloaded.
func (s *Store) Filling(d digest.Digest) bool { return s.gate.filling(d, "") }

// Fill returns the download of a digest that is in progress; of several, the one with the
// most bytes.
func (s *Store) Fill(d digest.Digest) (FillInfo, bool) {
	var infos []FillInfo
	for _, f := range s.gate.runningOf(d) {
		infos = append(infos, f.info())
	}
	if len(infos) == 0 {
		return FillInfo{}, false
	}
	return slices.MaxFunc(infos, func(a, b FillInfo) int { return cmp.Compare(a.Written, b.Written) }), true
}
