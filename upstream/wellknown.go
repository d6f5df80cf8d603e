package upstream

// WellKnown returns the public registries that are served when none is configured. A
// realm is given if it is on another host than the registry.
func WellKnown() []Config {
	known := []struct{ name, url, realm string }{
		{"docker.io", "https://registry-1.docker.io", "auth.docker.io"},
		{"ghcr.io", "https://ghcr.io", ""},
		{"quay.io", "https://quay.io", ""},
		{"gcr.io", "https://gcr.io", ""},
		{"registry.k8s.io", "https://registry.k8s.io", ""},
		{"mcr.microsoft.com", "https://mcr.microsoft.com", ""},
		{"public.ecr.aws", "https://public.ecr.aws", ""},
		{"registry.gitlab.com", "https://registry.gitlab.com", "gitlab.com"},
		{"docker.elastic.co", "https://docker.elastic.co", "docker-auth.elastic.co"},
		{"nvcr.io", "https://nvcr.io", ""},
		{"lscr.io", "https://lscr.io", ""},
		{"cgr.dev", "https://cgr.dev", ""},
	}
	var list []Config
	for _, k := range known {
		c := Config{Name: k.name, URLs: []string{k.url}}
		if k.realm != "" {
			c.TokenRealms = []string{k.realm}
		}
		list = append(list, c)
	}
	return list
}
