// Package chart tests charts/cachalot without a cluster: what Helm makes of the
// values that people choose is decoded strictly into the types of Kubernetes and
// of the operators, held against the restricted Pod Security Standard, and its
// configuration is given to the real cachalot, along with the files that its
// pods would have. The values for GitLab's chart are held against ours and against
// GitLab Runner. It is a module of its own, so that users of cachalot do not
// download Kubernetes.
package chart
