package alert

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"text/template"
	"time"
)

// defaultLink leads to Grafana, to the dashboard of this project.
const defaultLink = `{{with grafana}}{{.}}/d/flowaudit?from={{ms $.Since}}&to=now` +
	`{{with $.From}}&var-namespace={{query .Namespace}}&var-workload={{query .Workload}}{{end}}{{end}}`

// link is the template of links.
func (c *Config) link() string {
	text := cmp.Or(c.LinkTemplate, defaultLink)
	grafana, _ := json.Marshal(c.Grafana) // a string has a JSON form, which is a literal of templates too
	return strings.ReplaceAll(text, "{{with grafana}}", "{{with "+string(grafana)+"}}")
}

// Funcs are what templates of alerts may use.
func Funcs() template.FuncMap { return templateFuncs() }

func templateFuncs() template.FuncMap {
	return template.FuncMap{
		"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		},
		"query": url.QueryEscape,
		"ms":    func(t time.Time) int64 { return t.UnixMilli() },
		"time":  func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"upper": strings.ToUpper,
		"join":  func(sep string, list []string) string { return strings.Join(list, sep) },
	}
}

func execute(t *template.Template, a *Alert) string {
	var b bytes.Buffer
	if err := t.Execute(&b, a); err != nil {
		return fmt.Sprintf("%s (its template failed: %v)", a.Rule, err)
	}
	return b.String()
}

// PortText names the port, or the ports: tcp/3306.
func (a *Alert) PortText() string {
	if len(a.Ports) == 0 && a.Port == 0 {
		return cmp.Or(a.Protocol, "any port")
	}
	if len(a.Ports) <= 1 || a.Port != 0 {
		port := a.Port
		if port == 0 {
			port = a.Ports[0]
		}
		return fmt.Sprintf("%s/%d", cmp.Or(a.Protocol, "port"), port)
	}
	var list []string
	for _, p := range a.Ports {
		list = append(list, fmt.Sprint(p))
	}
	text := "ports " + strings.Join(list, ", ")
	if len(a.Ports) == maxExamples {
		text += ", …"
	}
	return text
}

// PeerText names the destinations.
func (a *Alert) PeerText() string {
	text := cmp.Or(strings.Join(a.Peers, ", "), a.To.String())
	if len(a.Peers) == maxExamples {
		text += ", …"
	}
	return text
}

// PolicyText names the policies, each once.
func (a *Alert) PolicyText() string {
	var out []string
	seen := make(map[string]bool)
	for _, p := range a.Policies {
		if name := strings.TrimPrefix(p.Namespace+"/"+p.Name, "/"); !seen[name] {
			seen[name] = true
			out = append(out, name)
		}
	}
	return cmp.Or(strings.Join(out, ", "), "a policy")
}

// command is what to type to see the flows that an alert is about.
func command(a *Alert, r *compiled) string {
	if r.Coverage != nil {
		return "flowaudit status"
	}
	parts := []string{"flowaudit observe"}
	switch {
	case r.Match.Refused != nil && *r.Match.Refused:
		parts = append(parts, "--verdict denied,unanswered")
	case len(r.Match.Verdict) > 0:
		parts = append(parts, "--verdict "+strings.Join(r.Match.Verdict, ","))
	}
	if len(r.Match.Assessment) > 0 {
		parts = append(parts, "--assessment "+strings.Join(r.Match.Assessment, ","))
	}
	parts = append(parts, endFlags(a.From, "from")...)
	parts = append(parts, endFlags(a.To, "to")...)
	if r.by.port && a.Port != 0 && (a.Protocol == "tcp" || a.Protocol == "udp" || a.Protocol == "sctp") {
		parts = append(parts, fmt.Sprintf("--port %d", a.Port))
	}
	return strings.Join(append(parts, "--since "+a.Since.UTC().Format(time.RFC3339)), " ")
}

func endFlags(e *End, side string) []string {
	switch {
	case e == nil:
		return nil
	case e.Workload != "" && e.WorkloadKind == "Pod":
		return []string{fmt.Sprintf("--%s-pod %s/%s", side, e.Namespace, e.Workload)}
	case e.Workload != "":
		return []string{fmt.Sprintf("--%s-workload %s/%s", side, e.Namespace, e.Workload)}
	case e.Address != "":
		return []string{fmt.Sprintf("--%s-ip %s", side, e.Address)}
	}
	return nil
}
