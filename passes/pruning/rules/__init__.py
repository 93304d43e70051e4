"""How axes pass through each operator: tables by operator, a module for each class that treats dimensions alike."""
