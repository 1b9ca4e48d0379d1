package notify

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/collector/alert"
)

// cef is an alert in ArcSight's Common Event Format.
func cef(a *alert.Alert) string {
	var b strings.Builder
	severity := map[string]int{"info": 3, "warning": 6, "critical": 9}[a.Severity]
	if a.State == alert.Resolved {
		severity = 1
	}
	header := strings.NewReplacer(`\`, `\\`, "|", `\|`, "\n", " ", "\r", " ")
	fmt.Fprintf(&b, "CEF:0|flowaudit|flowaudit|1|%s|%s|%d|", header.Replace(a.Rule), header.Replace(a.Summary), severity)
	extension := strings.NewReplacer(`\`, `\\`, "=", `\=`, "\n", `\n`, "\r", `\r`)
	put := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s=%s ", key, extension.Replace(value))
		}
	}
	label := func(n int, name, value string) {
		if value != "" {
			put(fmt.Sprintf("cs%dLabel", n), name)
			put(fmt.Sprintf("cs%d", n), value)
		}
	}
	put("externalId", a.ID)
	put("rt", milliseconds(happened(a)))
	put("start", milliseconds(a.Since))
	put("end", milliseconds(a.Last))
	put("cnt", fmt.Sprint(a.Count))
	put("act", string(a.State))
	for _, side := range []struct {
		address, host string
		*alert.End
	}{{"src", "shost", a.From}, {"dst", "dhost", a.To}} {
		if side.End == nil {
			continue
		}
		if !strings.Contains(side.Address, "/") {
			put(side.address, side.Address)
		}
		put(side.host, side.End.String())
	}
	if a.Port != 0 {
		put("dpt", fmt.Sprint(a.Port))
	}
	put("proto", strings.ToUpper(a.Protocol))
	put("dvchost", a.Node)
	put("msg", description(a))
	put("request", a.Link)
	label(1, "explanation", a.Explanation)
	label(2, "nearestMiss", a.NearestMiss)
	label(3, "command", a.Command)
	if len(a.Policies) > 0 {
		label(4, "policies", a.PolicyText())
	}
	label(5, "cluster", a.Cluster)
	if a.Change != nil {
		label(6, "change", a.Change.String())
	}
	return strings.TrimSuffix(b.String(), " ")
}

func milliseconds(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprint(t.UnixMilli())
}

// happened is when an alert got its state.
func happened(a *alert.Alert) time.Time {
	if a.State == alert.Resolved {
		return a.Ended
	}
	return a.Started
}

// The numbers of OCSF 1.3, class Detection Finding.
const (
	ocsfVersion   = "1.3.0"
	ocsfFindings  = 2
	ocsfDetection = 2004
	ocsfCreate    = 1
	ocsfClose     = 3
	ocsfNew       = 1
	ocsfResolved  = 4
	ocsfRule      = 1 // of an analytic's type
)

type ocsfEvent struct {
	Activity    int               `json:"activity_id"`
	Category    int               `json:"category_uid"`
	Class       int               `json:"class_uid"`
	Type        int               `json:"type_uid"`
	Severity    int               `json:"severity_id"`
	Status      int               `json:"status_id"`
	Time        int64             `json:"time"`
	Count       uint64            `json:"count,omitempty"`
	Message     string            `json:"message"`
	Metadata    ocsfMetadata      `json:"metadata"`
	Finding     ocsfFinding       `json:"finding_info"`
	Evidences   []ocsfEvidence    `json:"evidences,omitempty"`
	Observables []ocsfObservable  `json:"observables,omitempty"`
	Remediation *ocsfText         `json:"remediation,omitempty"`
	Unmapped    map[string]string `json:"unmapped,omitempty"`
}

type ocsfMetadata struct {
	Version string      `json:"version"`
	Product ocsfProduct `json:"product"`
	UID     string      `json:"uid"`
	Labels  []string    `json:"labels,omitempty"`
}

type ocsfProduct struct {
	Name   string `json:"name"`
	Vendor string `json:"vendor_name"`
}

type ocsfFinding struct {
	UID       string       `json:"uid"`
	Title     string       `json:"title"`
	Text      string       `json:"desc,omitempty"`
	Created   int64        `json:"created_time"`
	FirstSeen int64        `json:"first_seen_time,omitempty"`
	LastSeen  int64        `json:"last_seen_time,omitempty"`
	Source    string       `json:"src_url,omitempty"`
	Analytic  ocsfAnalytic `json:"analytic"`
}

type ocsfAnalytic struct {
	Name string `json:"name"`
	Type int    `json:"type_id"`
}

type ocsfText struct {
	Text       string   `json:"desc"`
	References []string `json:"references,omitempty"`
}

type ocsfEvidence struct {
	Source      *ocsfEndpoint   `json:"src_endpoint,omitempty"`
	Destination *ocsfEndpoint   `json:"dst_endpoint,omitempty"`
	Connection  *ocsfConnection `json:"connection_info,omitempty"`
}

type ocsfEndpoint struct {
	Name     string `json:"name,omitempty"`
	Hostname string `json:"hostname,omitempty"`
	IP       string `json:"ip,omitempty"`
	Port     uint16 `json:"port,omitempty"`
}

type ocsfConnection struct {
	Protocol  string `json:"protocol_name"`
	Direction int    `json:"direction_id"`
}

type ocsfObservable struct {
	Name  string `json:"name"`
	Type  int    `json:"type_id"`
	Value string `json:"value"`
}

const ocsfIPAddress = 2 // of an observable's type

// ocsf is an alert as OCSF's Detection Finding.
func ocsf(a *alert.Alert) ([]byte, error) {
	e := ocsfEvent{
		Activity: ocsfCreate, Category: ocsfFindings, Class: ocsfDetection, Status: ocsfNew,
		Severity: map[string]int{"info": 1, "warning": 3, "critical": 5}[a.Severity],
		Time:     happened(a).UnixMilli(), Count: a.Count, Message: a.Summary,
		Metadata: ocsfMetadata{Version: ocsfVersion, Product: ocsfProduct{"flowaudit", "flowaudit"}, UID: a.ID + "-" + string(a.State)},
		Finding: ocsfFinding{
			UID: a.ID, Title: a.Summary, Text: cmp.Or(a.Explanation, description(a)), Created: a.Started.UnixMilli(), Source: a.Link,
			Analytic: ocsfAnalytic{a.Rule, ocsfRule},
		},
		Unmapped: map[string]string{"command": a.Command},
	}
	if a.State == alert.Resolved {
		e.Activity, e.Status = ocsfClose, ocsfResolved
	}
	e.Type = e.Class*100 + e.Activity
	if !a.Since.IsZero() {
		e.Finding.FirstSeen, e.Finding.LastSeen = a.Since.UnixMilli(), a.Last.UnixMilli()
	}
	if a.NearestMiss != "" {
		e.Remediation = &ocsfText{Text: "nearest rule: " + a.NearestMiss}
		if a.Runbook != "" {
			e.Remediation.References = []string{a.Runbook}
		}
	}
	if a.Cluster != "" {
		e.Metadata.Labels = []string{"cluster:" + a.Cluster}
	}
	evidence := ocsfEvidence{Source: ocsfEnd(a.From, 0), Destination: ocsfEnd(a.To, a.Port)}
	if a.Protocol != "" {
		evidence.Connection = &ocsfConnection{Protocol: a.Protocol}
	}
	if evidence.Source != nil || evidence.Destination != nil {
		e.Evidences = []ocsfEvidence{evidence}
	}
	for _, o := range []struct {
		name string
		end  *ocsfEndpoint
	}{{"evidences[].src_endpoint.ip", evidence.Source}, {"evidences[].dst_endpoint.ip", evidence.Destination}} {
		if o.end != nil && o.end.IP != "" {
			e.Observables = append(e.Observables, ocsfObservable{o.name, ocsfIPAddress, o.end.IP})
		}
	}
	return json.Marshal(e)
}

func ocsfEnd(e *alert.End, port uint16) *ocsfEndpoint {
	if e == nil {
		return nil
	}
	out := &ocsfEndpoint{Name: e.String(), Hostname: cmp.Or(e.Pod, e.Node), Port: port}
	if !strings.Contains(e.Address, "/") {
		out.IP = e.Address
	}
	return out
}
