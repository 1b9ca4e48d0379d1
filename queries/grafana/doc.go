// Package grafana makes the dashboards of Grafana, from the same questions that people ask by name.
package grafana
