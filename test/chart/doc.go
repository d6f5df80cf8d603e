// Package chart tests charts/cachalot without a cluster. Helm's output for typical values
// is decoded strictly into the types of Kubernetes and of the operators, and checked
// against the restricted Pod Security Standard. The real cachalot gets its configuration,
// with the files of its pods. The values for GitLab's chart are compared with ours and with
// GitLab Runner. It is a separate module, so that users of cachalot do not download
// Kubernetes.
package chart
