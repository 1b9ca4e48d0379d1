package grafana

import (
	"encoding/json"
	"fmt"
)

// Kind is what a dashboard's panels ask.
type Kind string

// The kinds, by the plugins of Grafana that ask.
const (
	ClickHouse Kind = "grafana-clickhouse-datasource"
	Prometheus Kind = "prometheus"
)

// Dashboard is a page of panels.
type Dashboard struct {
	UID, Title string
	Kind       Kind
	Variables  []Variable
	Panels     []Panel
}

// Variable is what its reader can choose. All of it is chosen at first.
type Variable struct {
	Name, Label string
	Query       string // SQL for what there is to choose from
}

// Panel is one picture.
type Panel struct {
	Title, Text string
	Shape       string // timeseries or table
	Unit        string // of Grafana
	Wide        bool   // takes the whole width
	Targets     []Target
}

// Target is what a panel asks: SQL of ClickHouse, or PromQL.
type Target struct{ Query, Legend string }

const (
	panelWidth  = 12
	panelHeight = 8
)

type object = map[string]any

// JSON is the dashboard as Grafana reads it.
func (d *Dashboard) JSON() ([]byte, error) {
	source := object{"type": d.Kind, "uid": "${datasource}"}
	label := "ClickHouse"
	if d.Kind == Prometheus {
		label = "Prometheus"
	}
	variables := []object{{"name": "datasource", "type": "datasource", "query": d.Kind, "label": label}}
	for _, v := range d.Variables {
		variables = append(variables, d.variable(v, source))
	}
	var panels []object
	x, y := 0, 0
	for i, p := range d.Panels {
		width := panelWidth
		if p.Wide {
			width *= 2
		}
		if x+width > 2*panelWidth {
			x, y = 0, y+panelHeight
		}
		panels = append(panels, object{
			"id": i + 1, "title": p.Title, "type": p.Shape, "description": p.Text, "datasource": source,
			"gridPos": object{"x": x, "y": y, "w": width, "h": panelHeight}, "targets": d.targets(p, source),
			"fieldConfig": object{"defaults": object{"unit": p.unit(), "min": 0}, "overrides": []object{}},
		})
		x += width
	}
	out, err := json.MarshalIndent(object{
		"uid": d.UID, "title": d.Title, "tags": []string{"flowaudit", "networkpolicy"}, "schemaVersion": 39, "version": 1, "editable": true,
		"refresh": "1m", "time": object{"from": "now-6h", "to": "now"}, "templating": object{"list": variables}, "panels": panels,
	}, "", " ")
	if err != nil {
		return nil, fmt.Errorf("make dashboard %s: %w", d.UID, err)
	}
	return append(out, '\n'), nil
}

func (p *Panel) unit() string {
	if p.Unit == "" {
		return "short"
	}
	return p.Unit
}

// variable is a list to choose from; over metrics, which have the two ends in
// different labels, it is a pattern to type.
func (d *Dashboard) variable(v Variable, source object) object {
	if d.Kind == Prometheus {
		return object{"name": v.Name, "label": v.Label, "type": "textbox", "query": anything, "current": object{"text": anything, "value": anything}}
	}
	return object{
		"name": v.Name, "label": v.Label, "type": "query", "datasource": source, "query": v.Query, "refresh": 2, "sort": 1,
		"multi": true, "includeAll": true, "allValue": "'" + all + "'", "current": object{"text": "All", "value": "$__all"}, // Grafana puts it in as it is
	}
}

func (d *Dashboard) targets(p Panel, source object) (out []object) {
	for i, t := range p.Targets {
		o := object{"refId": string(rune('A' + i)), "datasource": source}
		switch {
		case d.Kind == Prometheus:
			o["expr"], o["legendFormat"] = t.Query, t.Legend
		case p.Shape == "timeseries":
			o["rawSql"], o["editorType"], o["queryType"], o["format"] = t.Query, "sql", "timeseries", 0
		default:
			o["rawSql"], o["editorType"], o["queryType"], o["format"] = t.Query, "sql", "table", 1
		}
		out = append(out, o)
	}
	return out
}
