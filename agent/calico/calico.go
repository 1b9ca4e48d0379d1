// Package calico knows how Calico's Felix names policies in log prefixes and flows.
package calico

import (
	"crypto/sha256"
	"encoding/base64"
	"regexp"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
)

// Kinds of policies as a PolicyRef names them. Calico's own namespaced policy
// has the same name as Kubernetes' in their APIs.
const (
	KindKubernetes = "NetworkPolicy"
	KindNamespaced = "CalicoNetworkPolicy"
	KindGlobal     = "GlobalNetworkPolicy"
	KindTier       = "Tier" // its end refused: no policy matched
	KindProfile    = "Profile"
)

// ShortKinds are the names of kinds in log prefixes.
func ShortKinds() []string { return []string{"np", "gnp", "knp", "kcnp", "snp", "sgnp", "sknp"} }

// Kind gives the kind of a short name, or "".
func Kind(short string) string {
	switch short {
	case "np":
		return KindNamespaced
	case "gnp":
		return KindGlobal
	case "knp":
		return KindKubernetes
	case "kcnp":
		return "ClusterNetworkPolicy"
	case "snp":
		return "StagedNetworkPolicy"
	case "sgnp":
		return "StagedGlobalNetworkPolicy"
	case "sknp":
		return "StagedKubernetesNetworkPolicy"
	}
	return ""
}

// Prefix is what Felix writes before a packet that it logs.
type Prefix struct {
	Verdict flow.Verdict // unknown for Pass: a later tier or profile decides
	Side    flow.Direction
	Policy  flow.PolicyRef // Name is empty if none is named
	// Hashed says that the name was too long and cannot be read: Resolve finds it.
	Hashed bool
}

// Grammar reads prefixes.
type Grammar struct{ prefix *regexp.Regexp }

// NewGrammar compiles the grammar.
func NewGrammar() Grammar {
	// Allow, Deny or Pass; Policy or pRofile; Ingress or Egress; rule; name.
	return Grammar{regexp.MustCompile(`^([ADP])([PR])([IE])(\d*)(?:\|(.*))?$`)}
}

// Parse reads a prefix; ok is false if it is not Felix's.
func (g Grammar) Parse(s string) (p Prefix, ok bool) {
	m := g.prefix.FindStringSubmatch(s)
	if m == nil {
		return p, false
	}
	switch m[1] {
	case "A":
		p.Verdict = flow.VerdictAllowed
	case "D":
		p.Verdict = flow.VerdictDenied
	}
	p.Side = flow.DirectionIngress
	if m[3] == "E" {
		p.Side = flow.DirectionEgress
	}
	p.Hashed = len(s) == maxPrefix && s[keptEnds] == '_'
	switch id := m[5]; {
	case id == "": // no profile matched
		return p, true
	case m[2] == "R":
		p.Policy = flow.PolicyRef{Kind: KindProfile, Name: id}
	case m[4] == "" && !strings.Contains(id, "/"):
		p.Policy = flow.PolicyRef{Kind: KindTier, Name: id}
	default:
		p.Policy = ParseID(id)
	}
	p.Policy.Side = p.Side.String()
	if m[4] != "" {
		p.Policy.Rule = p.Policy.Side + "[" + m[4] + "]"
	}
	return p, true
}

// k8sName is how Felix calls Kubernetes' policies among its own before v3.32.
const k8sName = "knp.default."

// ParseID reads a policy's id: kind/namespace/name or kind/name, and before
// v3.32 namespace/name or name.
func ParseID(id string) flow.PolicyRef {
	f := strings.Split(id, "/")
	switch kind := Kind(f[0]); {
	case kind != "" && len(f) == 3:
		return flow.PolicyRef{Kind: kind, Namespace: f[1], Name: f[2]}
	case kind != "" && len(f) == 2 && strings.Contains(kind, "Global") || f[0] == "kcnp" && len(f) == 2:
		return flow.PolicyRef{Kind: kind, Name: f[1]}
	case len(f) == 2:
		if name, k8s := strings.CutPrefix(f[1], k8sName); k8s {
			return flow.PolicyRef{Kind: KindKubernetes, Namespace: f[0], Name: name}
		}
		return flow.PolicyRef{Kind: KindNamespaced, Namespace: f[0], Name: f[1]}
	}
	return flow.PolicyRef{Kind: KindGlobal, Name: id}
}

// ids are the ids that a policy has had in Felix's versions.
func ids(p flow.PolicyRef) []string {
	var out []string
	for _, short := range ShortKinds() {
		if Kind(short) != p.Kind {
			continue
		}
		if p.Namespace == "" {
			out = append(out, short+"/"+p.Name, p.Name)
		} else {
			out = append(out, short+"/"+p.Namespace+"/"+p.Name, p.Namespace+"/"+p.Name)
		}
		if p.Kind == KindKubernetes {
			out = append(out, p.Namespace+"/"+k8sName+p.Name)
		}
	}
	return out
}

// A prefix has 63 characters. What is longer keeps its two ends, and a hash
// stands for it between them.
const (
	maxPrefix = 63
	keptEnds  = 10
	hashWidth = maxPrefix - 2*keptEnds - 2
)

// Shorten gives a prefix as Felix writes it.
func Shorten(prefix string) string {
	if len(prefix) < maxPrefix {
		return prefix
	}
	sum := sha256.Sum256([]byte(prefix))
	hash := base64.RawURLEncoding.EncodeToString(sum[:])
	return prefix[:keptEnds] + "_" + hash[:hashWidth] + "_" + prefix[len(prefix)-keptEnds:]
}

// Resolve finds the policy behind a hashed prefix among known ones.
func Resolve(prefix string, known []flow.PolicyRef) (p flow.PolicyRef, ok bool) {
	head, _, cut := strings.Cut(prefix, "|")
	if !cut || len(head) >= keptEnds {
		return p, false
	}
	for _, k := range known {
		for _, id := range ids(k) {
			if full := head + "|" + id; len(full) >= maxPrefix && Shorten(full) == prefix {
				return k, true
			}
		}
	}
	return p, false
}
