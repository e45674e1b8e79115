// A run's page and a comparison share one document; the address says which of the two it becomes.
import(location.pathname === "/compare" ? "./compare.js" : "./run.js");
