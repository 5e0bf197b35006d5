"""What a split's report has, whatever run it is of."""

REPORT = {
    *("sharpe_ratio", "sharpe_ci95", "probabilistic_sharpe", "deflated_sharpe", "n_trials", "pbo"),
    *("sortino_ratio", "calmar_ratio", "max_drawdown", "var_95", "cvar_95", "total_return"),
    *("final_portfolio_value", "win_rate_episodes", "win_rate_trades", "profit_factor"),
    *("turnover", "exposure", "gross_pnl", "commission", "spread_cost", "impact_cost"),
    *("roll_cost", "net_pnl", "episode_rewards", "per_regime", "per_year", "baselines"),
    *("agent_contributions", "oracle_sharpe", "oracle_share", "null_test", "targets"),
}
BASELINES = {"flat", "buy_and_hold", "random", "random_same_turnover", "sma_crossover"}
