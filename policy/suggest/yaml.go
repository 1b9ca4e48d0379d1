package suggest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	yaml "go.yaml.in/yaml/v3"
)

// WriteYAML writes the policies as one file for kubectl apply, each rule with
// its reasons, and with explain with the traffic behind it.
func (r *Result) WriteYAML(w io.Writer, explain bool) error {
	for _, n := range r.Delete {
		if _, err := fmt.Fprintf(w, "# to be deleted: kubectl delete networkpolicy -n %s %s\n", n.Namespace, n.Name); err != nil {
			return err
		}
	}
	for i := range r.Policies {
		text, err := r.Policies[i].YAML(explain)
		if err != nil {
			return err
		}
		if i > 0 {
			text = append([]byte("---\n"), text...)
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
	return nil
}

// YAML is the policy as a file.
func (p *Policy) YAML(explain bool) ([]byte, error) {
	text, err := json.Marshal(p.Object)
	if err != nil {
		return nil, fmt.Errorf("write policy %s/%s: %w", p.Object.Namespace, p.Object.Name, err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("write policy %s/%s: %w", p.Object.Namespace, p.Object.Name, err)
	}
	root := doc.Content[0]
	plain(root)
	first(root, "apiVersion")
	for _, key := range []string{"policyTypes", "podSelector"} {
		first(value(root, "spec"), key)
	}
	for i := range p.Rules {
		rule := &p.Rules[i]
		list := value(value(root, "spec"), rule.Direction)
		if list == nil || rule.Index >= len(list.Content) {
			continue
		}
		first(list.Content[rule.Index], "from")
		first(list.Content[rule.Index], "to")
		list.Content[rule.Index].HeadComment = rule.comment(explain)
	}
	var b bytes.Buffer
	if len(p.Workloads) > 0 {
		b.WriteString("# " + few(p.Workloads) + "\n")
	}
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(root); err != nil {
		return nil, fmt.Errorf("write policy %s/%s: %w", p.Object.Namespace, p.Object.Name, err)
	}
	return b.Bytes(), nil
}

// comment says why a rule is there.
func (r *Rule) comment(explain bool) string {
	lines := slices.Clone(r.Reasons)
	if explain {
		const format = "2006-01-02 15:04"
		for _, e := range r.Evidence {
			lines = append(lines, fmt.Sprintf("  %s -> %s %d/%s: %d connections, seen in %d hours, %s until %s UTC", e.Source, e.Destination, e.Port, e.Protocol,
				e.Connections, e.Hours, e.First.UTC().Format(format), e.Last.UTC().Format(format)))
		}
	}
	for i := range lines {
		lines[i] = "# " + lines[i]
	}
	return strings.Join(lines, "\n")
}

// plain writes nodes as people do, and not as JSON.
func plain(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plain(c)
	}
	if len(n.Content) == 0 && n.Kind != yaml.ScalarNode {
		n.Style = yaml.FlowStyle // {} and []
	}
}

// first moves a key to the front.
func first(m *yaml.Node, key string) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			pair := slices.Clone(m.Content[i : i+2])
			m.Content = append(pair, slices.Delete(m.Content, i, i+2)...)
			return
		}
	}
}

// value finds a key's value; nil if there is none.
func value(m *yaml.Node, key string) *yaml.Node {
	if m == nil {
		return nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i+1]
		}
	}
	return nil
}

// WriteJSON writes the whole result as one JSON object.
func (r *Result) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
