package chart

import "maps"

// choice is a typical way to set the chart up.
type choice struct {
	values string
	// unrestricted is the reason why the restricted Pod Security Standard rejects it.
	unrestricted string
}

func choices() map[string]choice {
	all := gitopsChoices()
	maps.Copy(all, storageChoices())
	maps.Copy(all, map[string]choice{
		"defaults": {},
		"subchart": {values: `{global: {imageRegistry: registry.example}}`},
		"names":    {values: `{nameOverride: mirror, fullnameOverride: hub-mirror, commonLabels: {team: ci}}`},
		"image": {values: `
image: {repository: registry.example/mirror, digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", pullPolicy: Always}
imagePullSecrets: [{name: corp}]`},
		"configuration": {values: `
resources: {limits: {memory: 2Ti}}
config:
  max_connections: 2000000
  log: {level: debug, format: json}
  storage: {max_size: 0, min_free: 10%}
  tags: {fresh_for: 5m}
  trusted_proxies: [10.0.0.0/8, "fd00::/8"]
  upstreams:
    docker.io: {urls: [https://mirror.gcr.io, https://registry-1.docker.io]}
    ghcr.io: {}
    registry.corp: {url: https://registry.corp, allow_addresses: [10.0.0.0/8]}
  rules:
  - match: ["docker.io/library/**"]
    keep_for: 720h`},
		"sections that say nothing": {values: `{config: {admin: null, storage: null, log: null}}`},
		"other ports":               {values: `{config: {listen: "[::]:8080", admin: {listen: "[::]:9090"}}, service: {port: 80}}`},
		"admin for itself":          {values: `{config: {admin: {listen: "127.0.0.1:5001"}}}`},
		"existing secrets": {values: `
secrets:
  hub: {existingSecret: docker-hub}
  corp: {existingSecret: corp}
config:
  upstreams:
    docker.io: {username: ci, password_file: /run/secrets/hub/password}
    registry.corp: {url: https://registry.corp, ca_file: /run/secrets/corp/ca.crt}`},
		"made secrets": {values: `
secrets:
  hub: {data: {one: first password, two: "2"}}
  admin: {data: {token: 0123456789abcdef0123456789abcdef}}
config:
  admin: {token_file: /run/secrets/admin/token}
  upstreams:
    docker.io:
      accounts:
      - {username: ci-1, password_file: /run/secrets/hub/one}
      - {username: ci-2, password_file: /run/secrets/hub/two}`},
		"password from the environment": {values: `
extraEnv: [{name: HUB, valueFrom: {secretKeyRef: {name: docker-hub, key: password}}}]
extraEnvFrom: [{secretRef: {name: more}}]
config: {upstreams: {docker.io: {username: ci, password: "${HUB}"}}}`},
		"own certificate": {values: `{tls: {secretName: mirror-tls}}`},
		"cert-manager": {values: `
tls: {certManager: {enabled: true, issuerRef: {name: corp, kind: ClusterIssuer, group: cert-manager.io}, dnsNames: [mirror.corp], ipAddresses: [192.0.2.1], duration: 2160h, renewBefore: 360h}}
ingress: {enabled: true, hosts: [mirror.example]}`},
		"own claim":   {values: `{persistence: {size: 1.5Ti, storageClassName: fast, accessModes: [ReadWriteOncePod], annotations: {a: b}, selector: {matchLabels: {disk: big}}, retain: false}}`},
		"their claim": {values: `{persistence: {type: existingClaim, existingClaim: images}}`},
		"host path":   {values: `{persistence: {type: hostPath, hostPath: /srv/cachalot}}`, unrestricted: "hostPath"},
		"empty dir":   {values: `{persistence: {type: emptyDir, size: 20Gi}}`},
		"node port":   {values: `{service: {type: NodePort, nodePort: 30500, externalTrafficPolicy: Local}}`},
		"load balancer": {values: `{service: {type: LoadBalancer, port: 443, loadBalancerIP: 192.0.2.7, loadBalancerClass: example.com/lb, loadBalancerSourceRanges: [10.0.0.0/8],
  annotations: {lb: internal}, labels: {a: b}, sessionAffinity: ClientIP}}`},
		"IPv6":       {values: `{service: {ipFamilyPolicy: SingleStack, ipFamilies: [IPv6], clusterIP: "fd00::5"}}`},
		"dual stack": {values: `{service: {ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4]}}`},
		"ingress": {values: `
ingress: {enabled: true, className: nginx, hosts: [mirror.example, quay.mirror.example], tls: [{secretName: web, hosts: [mirror.example]}],
  annotations: {nginx.ingress.kubernetes.io/proxy-buffering: "off"}, labels: {a: b}}`},
		"gateway": {values: `
httpRoute: {enabled: true, parentRefs: [{name: public, namespace: gateways, sectionName: https}], hostnames: [mirror.example], timeouts: {request: 0s}, labels: {a: b}, annotations: {a: b}}`},
		"service monitor": {values: `
metrics:
  serviceMonitor: {enabled: true, interval: 30s, labels: {release: prometheus}, relabelings: [{targetLabel: cluster, replacement: one}], metricRelabelings: [{action: drop, sourceLabels: [__name__], regex: go_.*}]}
  prometheusRule: {enabled: true, labels: {release: prometheus}}
  dashboard: {enabled: true, annotations: {folder: CI}}`},
		"pod monitor":       {values: `{fullnameOverride: mirror, metrics: {podMonitor: {enabled: true}}}`},
		"no network policy": {values: `{networkPolicy: {enabled: false}}`},
		"narrow network policy": {values: `
networkPolicy:
  enabled: true
  clients: [{namespaceSelector: {matchLabels: {ci: "true"}}}, {ipBlock: {cidr: 10.0.0.0/8}}]
  admin: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
  prometheus: []
  ingress: [{ports: [{port: 15008}]}]
  egress: [{ports: [{port: 53, protocol: UDP}, {port: 443}]}]`},
		"nodes":                     {values: `{nodes: {enabled: true}}`},
		"nodes with one folder":     {values: `{nodes: {enabled: true, verify: false, configPath: /etc/containerd/certs.d}}`},
		"nodes that are configured": {values: `{nodes: {enabled: true, configureContainerd: true, containerdSocket: /run/containerd/containerd.sock, port: 5010, startupTaint: cachalot.example/starting}, metrics: {podMonitor: {enabled: true}}}`},
		"nodes by a node port": {values: `
service: {type: NodePort, nodePort: 30500}
nodes: {enabled: true, serviceAccountName: for-nodes, configPath: /etc/containerd/hosts.d, registries: [docker.io, "registry.corp:8443"], priorityClassName: system-node-critical, nodeSelector: {role: ci},
  tolerations: [], affinity: {nodeAffinity: {}}, podLabels: {a: b}, podAnnotations: {c: d}, resources: {limits: null}, securityContext: {seLinuxOptions: {type: spc_t}}}`},
		"nodes by a name": {values: `
tls: {certManager: {enabled: true, issuerRef: {name: corp}, dnsNames: [mirror.corp]}}
nodes: {enabled: true, mirror: "https://mirror.corp:5000", caSecret: mirror-cachalot-tls, updateStrategy: {type: OnDelete, rollingUpdate: null}}`},
		"nodes without an account": {values: `{nodes: {enabled: true}, serviceAccount: {create: false, name: other}}`},
		"several": {values: `
replicas: 3
podDisruptionBudget: {enabled: true, maxUnavailable: 34%}
topologySpreadConstraints: [{maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: ScheduleAnyway}]
affinity: {podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, podAffinityTerm: {topologyKey: kubernetes.io/hostname}}]}}`},
		"scheduling": {values: `
nodeSelector: {disk: ssd}
tolerations: [{key: ci, operator: Exists}]
priorityClassName: high
runtimeClassName: gvisor
schedulerName: mine
dnsPolicy: None
dnsConfig: {nameservers: [192.0.2.53]}
hostAliases: [{ip: 192.0.2.9, hostnames: [registry.corp]}]
terminationGracePeriodSeconds: 90`},
		"no limits":              {values: `{resources: {limits: null}}`},
		"own memory limit of Go": {values: `{extraEnv: [{name: GOMEMLIMIT, value: 1GiB}], resources: {limits: {memory: 1200Mi}}}`},
		"a small machine":        {values: `{resources: {requests: {memory: 64Mi}, limits: {memory: 256Mi}}, config: {storage: {max_fills: 32}}}`},
		"own limits":             {values: `{resources: {requests: {memory: 1G}, limits: {memory: 2G, cpu: 2}}}`},
		"extras": {values: `
podLabels: {azure.workload.identity/use: "true"}
podAnnotations: {a: b}
serviceAccount: {annotations: {eks.amazonaws.com/role-arn: "arn:aws:iam::1:role/ecr"}}
extraEnv: [{name: HTTPS_PROXY, value: "http://proxy:3128"}]
extraVolumes: [{name: more, emptyDir: {}}]
extraVolumeMounts: [{name: more, mountPath: /more}]
initContainers: [{name: wait, image: "busybox:1.37", securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]
extraContainers: [{name: log, image: "busybox:1.37", securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]`},
		"account of another": {values: `{serviceAccount: {create: false, name: other}}`},
		"no account":         {values: `{serviceAccount: {create: false}}`},
		"probes":             {values: `{startupProbe: {failureThreshold: 300}, livenessProbe: {timeoutSeconds: 9}, readinessProbe: {initialDelaySeconds: 1}}`},
	})
	return all
}

// gitopsChoices are those of larger charts, and of tools that apply what they render.
func gitopsChoices() map[string]choice {
	return map[string]choice{
		"condition of a larger chart": {values: `{enabled: true, global: {storageClass: fast, corp: {regions: [eu, us], level: 3}}}`},
		"registry of a larger chart": {values: `
global: {imageRegistry: "registry.example:5000/hub/", imagePullSecrets: [corp, {name: hub}]}
image: {registry: quay.io}
imagePullSecrets: [{name: corp}, {name: own}]
nodes: {enabled: true}`},
		"registry apart":         {values: `{image: {registry: "registry.example:5000", repository: cachalot/mirror, tag: "7"}}`},
		"registry without a dot": {values: `{image: {registry: localhost, repository: "corp:80/mirror"}}`},
		"annotations of all": {values: `
commonAnnotations: {owner: ci, docs.example/page: mirror}
commonLabels: {team: ci}
service: {annotations: {owner: network}}
secrets: {hub: {data: {password: first password}}}
ingress: {enabled: true, hosts: [mirror.example]}
httpRoute: {enabled: true, parentRefs: [{name: public}]}
nodes: {enabled: true}
podDisruptionBudget: {enabled: true}
metrics: {serviceMonitor: {enabled: true}, prometheusRule: {enabled: true}, dashboard: {enabled: true}}`},
		"another namespace": {values: `
namespaceOverride: mirrors
secrets: {hub: {data: {password: first password}}}
tls: {certManager: {enabled: true, issuerRef: {name: corp}}}
nodes: {enabled: true, mirror: "https://mirror.example:5000"}
ingress: {enabled: true, hosts: [mirror.example]}
metrics: {podMonitor: {enabled: true}, prometheusRule: {enabled: true}, dashboard: {enabled: true}}`},
		"replica count":                {values: `{replicaCount: 3, podDisruptionBudget: {enabled: true}}`},
		"replica count of one":         {values: `{replicaCount: 1, persistence: {type: existingClaim, existingClaim: images}}`},
		"no replica":                   {values: `{replicas: 0}`},
		"no replica by its other name": {values: `{replicaCount: 0}`},
		"near replicas":                {values: `{replicas: 2, service: {trafficDistribution: PreferClose, internalTrafficPolicy: Cluster}}`},
		"only the replica of a node":   {values: `{service: {type: NodePort, internalTrafficPolicy: Local, externalTrafficPolicy: Local}}`},
		"budget by a share":            {values: `{replicas: 3, podDisruptionBudget: {enabled: true, minAvailable: 50%}}`},
		"budget of all":                {values: `{podDisruptionBudget: {enabled: true, maxUnavailable: 0}}`},
		"budget of none":               {values: `{podDisruptionBudget: {enabled: true, minAvailable: 0, maxUnavailable: ""}}`},
		"slow rollout":                 {values: `{replicas: 3, minReadySeconds: 30, updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 1}}}`},
		"rollout by hand":              {values: `{updateStrategy: {type: OnDelete}}`},
		"lifecycle":                    {values: `{lifecycle: {preStop: {sleep: {seconds: 5}}}}`},
		"more objects": {values: `
commonAnnotations: {owner: ci}
extraObjects:
- |
  apiVersion: v1
  kind: ConfigMap
  metadata: {{- include "cachalot.metadata" (list . (printf "%s-more" (include "cachalot.fullname" .)) "more") | nindent 2 }}
  data: {replicas: {{ .Values.replicas | quote }}}
- apiVersion: v1
  kind: Secret
  metadata:
    name: '{{ include "cachalot.fullname" . }}-extra'
    namespace: '{{ .Release.Namespace }}'
    labels: {app.kubernetes.io/name: extra, app.kubernetes.io/instance: "{{ .Release.Name }}", app.kubernetes.io/component: extra, app.kubernetes.io/version: "1", app.kubernetes.io/managed-by: hand, helm.sh/chart: cachalot}
  stringData: {password: "{{ .Values.replicas }}"}`},
		"no check of the configuration": {values: `{configCheck: {enabled: false}}`},
		"check of the configuration": {values: `
configCheck: {resources: {limits: {cpu: 1, memory: 256Mi}}}
imagePullSecrets: [{name: corp}]
nodeSelector: {disk: ssd}
tolerations: [{key: ci, operator: Exists}]
podLabels: {cost: ci}
podAnnotations: {sidecar.istio.io/inject: "false"}
serviceAccount: {create: false, name: other}
extraEnv: [{name: LEVEL, value: debug}, {name: OTHER, valueFrom: {secretKeyRef: {name: other, key: other}}}]
config: {log: {level: "${LEVEL}"}, hosts: ["mirror.example"], upstreams: {docker.io: {username: "$${OTHER}", password_file: /run/secrets/hub/password}}}
secrets: {hub: {existingSecret: docker-hub}}`},
		"files of several Secrets": {values: `
secrets: {check: {existingSecret: a}, cachalot: {existingSecret: b}, made: {data: {config.json: "{}", token: 0123456789abcdef}}}
config:
  admin: {token_file: /run/secrets/made/token}
  upstreams:
    docker.io: {accounts: [{docker_config: /run/secrets/made/config.json}, {docker_config: /run/secrets/check/.dockerconfigjson}]}
    registry.corp: {url: "https://registry.corp", ca_file: /run/secrets/cachalot/ca.crt, username: ci, password_file: /run/secrets/check/password}`},
	}
}

// storageChoices are those of where the cache is, and of how much it takes.
func storageChoices() map[string]choice {
	return map[string]choice{
		"smallest claim":               {values: `{persistence: {size: 1Gi}}`},
		"smallest empty dir":           {values: `{persistence: {type: emptyDir, size: 1Gi}}`},
		"empty dir with requests":      {values: `{persistence: {type: emptyDir, size: 20Gi}, resources: {requests: {ephemeral-storage: 10Gi, memory: 256Mi}, limits: {ephemeral-storage: 21Gi, memory: 1Gi}}}`},
		"empty dir without requests":   {values: `{persistence: {type: emptyDir, size: 20Gi}, resources: {requests: null, limits: null}}`},
		"empty dir with its own sizes": {values: `{persistence: {type: emptyDir, size: 20Gi}, config: {storage: {max_size: 10GB, max_index: 1GiB, min_free: 15%}}}`},
		"several host paths": {unrestricted: "hostPath", values: `
replicas: 3
persistence: {type: hostPath, hostPath: /srv/cachalot}
affinity:
  nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: In, values: [ssd]}]}]}}
  podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: topology.kubernetes.io/zone, labelSelector: {matchLabels: {role: build}}}]}`},
		"host path of a disk of its own": {values: `{persistence: {type: hostPath, hostPath: /mnt/cache}, config: {storage: {max_size: 90%, min_free: 2%}}}`, unrestricted: "hostPath"},
	}
}
