package dind

import "testing"

func TestVersion(t *testing.T) {
	t.Parallel()
	for out, want := range map[string]version{
		"Docker version 29.7.2, build e51d7f8\n":           {29, 7, 2},
		"Docker version 20.10.24+dfsg1, build 5d6db84\n":   {20, 10, 24},
		"Docker version 29.1.0-rc.1, build 0123456":        {29, 1, 0},
		"Docker version library-import, build library":     {},
		"Docker version 0.0.0-20260101120000-abc, build x": {},
		"Docker version 29.1, build 1":                     {},
		"":                                                 {},
	} {
		if got := parseVersion(out); got != want {
			t.Errorf("%q: %v", out, got)
		}
	}
	for _, tc := range []struct {
		v    version
		want bool
	}{
		{version{}, true},
		{version{24, 0, 8}, true},
		{version{24, 1, 0}, true},
		{version{25, 0, 0}, true},
		{version{24, 0, 7}, false},
		{version{23, 9, 9}, false},
	} {
		if tc.v.atLeast(24, 0, 8) != tc.want {
			t.Errorf("%v", tc.v)
		}
	}
}

func FuzzVersion(f *testing.F) {
	f.Add("Docker version 29.7.2, build e51d7f8")
	f.Fuzz(func(t *testing.T, out string) {
		if v := parseVersion(out); v != (version{}) && parseVersion(v.String()) != v {
			t.Errorf("%q: %v", out, v)
		}
	})
}
